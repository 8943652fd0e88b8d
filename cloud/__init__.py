"""What a job and a launch look at in Google Cloud before money is spent: permissions, regions, images."""
