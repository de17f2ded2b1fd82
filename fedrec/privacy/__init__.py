"""Privacy: mechanisms, what they cost, what is summed without being seen, and the attacks and audits beside them."""
