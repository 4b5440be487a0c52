"""A mixture as a folder of the user's own: the merged model, or one adapter that stands for it."""
