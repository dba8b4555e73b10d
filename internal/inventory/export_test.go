package inventory

// SameTurn reports whether two clients wait for each other.
func SameTurn(k *Keeper, a, b Binding) bool {
	x, y := a.want(), b.want()
	return k.leases.turnOf(x.client()) == k.leases.turnOf(y.client())
}
