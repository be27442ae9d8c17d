"""What do masks do that move with the model?"""
