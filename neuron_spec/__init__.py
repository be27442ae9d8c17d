"""neuron_spec: specialized neurons for multilingual machine translation on fairseq.

Light on purpose: ``import neuron_spec.neurons`` needs no fairseq. ``fairseq-* --user-dir`` imports
this package and then every module of ``tasks`` and ``models``, which register what they define.
"""

__version__ = "0.1.0"
