"""The six stages of the chest-radiograph assistant and the records that pass between them."""
