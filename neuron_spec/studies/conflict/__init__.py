"""Do the gradients of directions point apart, and in which layers?"""
