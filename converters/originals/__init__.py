"""The networks that families are modelled on, each as the graph that Keras has for it."""
