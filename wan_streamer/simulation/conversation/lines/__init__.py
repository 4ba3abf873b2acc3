"""More of what users say than the repertoire has: fillings, wordings, and frames in which a wish or a question stands.
In: the repertoire
Out: the lines of the training world"""
