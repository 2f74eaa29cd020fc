"""One step, as it is read: of one example, without time.

It reads top to bottom, each room using those above it:

    equations           what one reads and makes; the only door to JAX's jaxprs
    products            of matrices and rows, written rows first
    graph               traced functions, and functions made of parts of them
    primitives          which are products, elementwise, costly
    structure, blocks   which entries of a Jacobian can be other than zero; recursions of small blocks
    layout              transposes, done as late as they can be
    split               the step's four parts
    partition           what to save of a step: a minimum cut
    ends                where credit comes from and is wanted, and how far either reaches
    factored            a cotangent as a sum of factor ⊙ root
    recursion           that of δ, made of such
    pullback            the transition's derivative
    traffic             what it moves, cut into its parts or whole
"""
