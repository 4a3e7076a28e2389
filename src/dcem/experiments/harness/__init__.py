"""What experiments share: the command, how it is launched, the run that resumes exactly, training and reports."""
