"""Who may make which call: the credentials of a caller, the scope of each method, the decision."""
