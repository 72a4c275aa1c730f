"""Files of replicas that share no folder with the front: both ends of their way through the blobs."""
