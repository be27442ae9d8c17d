"""``python -m neuron_spec.studies``: the list of studies as a Markdown table."""

from neuron_spec.studies import as_markdown

if __name__ == "__main__":
    print(as_markdown(), end="")
