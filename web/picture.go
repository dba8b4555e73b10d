package web

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/api"
)

// picture is every machine as a square, those of a cluster together. The squares of a
// phase are one path, so that a thousand machines cost a browser no more than ten.
type picture struct {
	Width, Height int
	Labels        []label
	Paths         []shape
	Said          string // the same in words
}

type label struct {
	Y    int
	Text string
}

type shape struct{ Phase, D string }

// Sizes in the picture's own units.
const (
	pitch   = 14 // from one square to the next
	side    = 11 // of a square
	across  = 64 // squares in a row
	caption = 20 // height of the name of a cluster
)

func pictureOf(machines []api.Machine) *picture {
	if len(machines) == 0 {
		return nil
	}
	sorted := slices.Clone(machines)
	slices.SortStableFunc(sorted, func(a, b api.Machine) int {
		switch {
		case a.Cluster == b.Cluster:
			return cmp.Compare(a.Role, b.Role) // control planes first
		case a.Cluster == "":
			return 1
		case b.Cluster == "":
			return -1
		}
		return cmp.Compare(a.Cluster, b.Cluster)
	})
	pic := &picture{}
	paths, counts := map[string]*strings.Builder{}, map[string]int{}
	y, column := 0, 0
	for i := range sorted {
		m := &sorted[i]
		if i == 0 || m.Cluster != sorted[i-1].Cluster {
			if column > 0 {
				y += pitch
			}
			pic.Labels = append(pic.Labels, label{y + caption - 6, cmp.Or(m.Cluster, "in no cluster")})
			y, column = y+caption, 0
		}
		if column == across {
			y, column = y+pitch, 0
		}
		d := paths[m.Phase.Phase]
		if d == nil {
			d = &strings.Builder{}
			paths[m.Phase.Phase] = d
		}
		fmt.Fprintf(d, "M%d %dh%dv%dh-%dz", column*pitch, y, side, side, side)
		counts[m.Phase.Phase]++
		column++
	}
	pic.Width, pic.Height = across*pitch, y+pitch
	var said []string
	for _, phase := range phases {
		if d := paths[phase]; d != nil {
			pic.Paths = append(pic.Paths, shape{phase, d.String()})
			said = append(said, fmt.Sprintf("%d %s", counts[phase], phase))
		}
	}
	pic.Said = fmt.Sprintf("%d machines: %s", len(machines), strings.Join(said, ", "))
	return pic
}
