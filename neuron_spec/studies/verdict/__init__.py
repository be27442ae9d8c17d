"""Does specialization help, and when: a comparison read by rules that were fixed before it was made."""
