"""The ceiling of specialization: FFNs that nothing is shared in."""
