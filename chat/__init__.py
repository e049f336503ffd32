"""What Minutebook is about: events, pure rules, and the commands that apply them to the log."""
