"""A run spread over Ray actors: who is placed where, who does what next, and what happens when one is lost."""
