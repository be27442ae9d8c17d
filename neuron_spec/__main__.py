"""``python -m neuron_spec`` is ``neuron-spec``."""

from neuron_spec.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
