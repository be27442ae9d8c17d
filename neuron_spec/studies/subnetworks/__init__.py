"""What do subnetworks and meta-learning do for known and new languages?"""
