package inventory

import "sync"

// views keeps the views of machines that are in the middle of a boot, when each
// step reads what the last one wrote. It may be kept because the Keeper is the
// one writer: every commit passes through [Keeper.update], which drops what it
// touched.
type views struct {
	mu    sync.Mutex
	drops uint64 // counts invalidations
	view  map[string]View
	owner map[MAC]string // machine name
}

// maxViews bounds the memory to some 30 MB; reaching it starts anew.
const maxViews = 1 << 14

// get returns the view of a NIC's machine, and the count to pass to put.
func (c *views) get(mac MAC, name string, arch Arch) (v View, drops uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name == "" {
		name = c.owner[mac]
	}
	v, ok = c.view[name]
	return v, c.drops, ok && (arch == "" || arch == v.Facts.Arch)
}

// put keeps a view that was read, unless anything was dropped since get: it may
// be older than that.
func (c *views) put(v View, drops uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drops == drops {
		c.keep(v)
	}
}

func (c *views) keep(v View) {
	v.Bootstrap = nil
	if c.view == nil || len(c.view) >= maxViews {
		c.view, c.owner = map[string]View{}, map[MAC]string{}
	}
	c.view[v.Machine.Name] = v
	for _, mac := range v.Machine.MACs {
		c.owner[mac] = v.Machine.Name
	}
}

// committed drops what a commit may have changed.
func (c *views) committed(writes []Write) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(writes)
}

// advanced is committed for a commit that happened and changed one machine's
// facts: what they are now is known.
func (c *views) advanced(writes []Write, v View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(writes)
	c.keep(v)
}

func (c *views) drop(writes []Write) {
	c.drops++
	for _, w := range writes {
		switch w.Key.Bucket {
		case BucketMachines, BucketFacts:
			delete(c.view, w.Key.ID)
		case BucketMACs:
			delete(c.owner, MAC(w.Key.ID))
		case BucketClusters, BucketImages:
			clear(c.view)
		}
	}
}
