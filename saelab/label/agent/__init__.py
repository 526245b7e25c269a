"""An agent as a proposer: a model that asks for pictures of a unit, in a bounded talk, until it has a label."""
