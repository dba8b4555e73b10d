package inventory

import "sync"

// views keeps the views of machines that have booted lately, since each step of
// a boot reads what the last one wrote. It may be kept because the Keeper is the
// one writer: every commit passes through [Keeper.try], which says here what
// it touched before it returns. So a view from here is never older than a commit
// that returned before it was asked for.
type views struct {
	mu sync.Mutex
	// epoch moves when everything was dropped: a view that was read before may
	// hold an old cluster or image.
	epoch uint64
	view  map[string]*View // not modified
	// touched is the newest revision of a machine's record and of its facts, as
	// far as known in this epoch. Commits and reads come back in any order; this
	// keeps an older one from putting its view over a newer one's.
	touched map[Key]uint64
}

// maxViews bounds the memory to some 30 MB, and is a large hall that is switched
// on at once. Reaching it starts anew.
const maxViews = 1 << 14

// get returns the view of a machine, and the epoch, which a view that is read
// instead must carry.
func (c *views) get(name string, arch Arch) (v *View, epoch uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok = c.view[name]
	return v, c.epoch, ok && (arch == "" || arch == v.Facts.Arch)
}

// put keeps a view, unless it may be old. It must not be modified afterwards.
func (c *views) put(v *View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := v.Machine.Name
	machine, facts := Key{BucketMachines, name}, Key{BucketFacts, name}
	if c.view == nil || len(c.view) >= maxViews || len(c.touched) >= 4*maxViews {
		if c.reset(); v.epoch == c.epoch-1 {
			v.epoch = c.epoch // nothing was dropped for being old
		}
	}
	// Somebody has read this much: nobody may read less, even while the commit
	// that wrote it has not come back yet.
	newer := v.Machine.Rev > c.touched[machine] || v.Facts.Rev > c.touched[facts]
	c.touched[machine] = max(c.touched[machine], v.Machine.Rev)
	c.touched[facts] = max(c.touched[facts], v.Facts.Rev)
	switch {
	case v.epoch == c.epoch && v.Machine.Rev == c.touched[machine] && v.Facts.Rev == c.touched[facts]:
		c.view[name] = v
	case newer:
		delete(c.view, name)
	}
}

// committed drops what a commit changed. rev 0: it is not known whether the
// commit happened.
func (c *views) committed(writes []Write, rev uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rev == 0 {
		c.reset()
		return
	}
	for _, w := range writes {
		switch w.Key.Bucket {
		case BucketMachines, BucketFacts:
			delete(c.view, w.Key.ID)
			if c.touched == nil || len(c.touched) >= 2*maxViews {
				c.reset()
			}
			c.touched[w.Key] = max(c.touched[w.Key], rev)
		case BucketClusters, BucketImages:
			c.reset()
		}
	}
}

// conflicted drops a view that lost a race: it was old.
func (c *views) conflicted(writes []Write) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range writes {
		delete(c.view, w.Key.ID)
	}
}

func (c *views) reset() {
	c.epoch++
	c.view, c.touched = map[string]*View{}, map[Key]uint64{}
}
