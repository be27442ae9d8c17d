"""The ``neuron-spec`` command: one module per subcommand."""
