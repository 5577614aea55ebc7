"""Networks of priors, one a file."""
