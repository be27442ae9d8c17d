"""What does a training step on one direction do to the loss of every other?"""
