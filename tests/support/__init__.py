"""What tests share: arrays in awkward places, problems with their answers, and how far a result may be from them."""
