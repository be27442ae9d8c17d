"""What does every direction lose when the neurons of one are switched off?"""
