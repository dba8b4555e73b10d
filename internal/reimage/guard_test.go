package reimage

import (
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestMayGo: what a machine means to its cluster's etcd, and what the operator is told
// to do instead.
func TestMayGo(t *testing.T) {
	prod := &inventory.Cluster{Name: "prod"}
	self := &Member{ID: 1, Name: "cp-1"}
	for name, tc := range map[string]struct {
		s       Standing
		destroy bool
		ok      bool
		says    string
	}{
		"a worker":                 {Standing{}, false, true, "no etcd data"},
		"no member":                {Standing{Cluster: prod, Seen: true, Members: 3, Others: 3}, false, true, "no member"},
		"one of three":             {Standing{Cluster: prod, Seen: true, Member: self, Members: 3, Others: 2}, false, true, "2 of 2"},
		"one of three, one down":   {Standing{Cluster: prod, Seen: true, Member: self, Members: 3, Others: 1, Down: []string{"cp-3"}}, false, false, "left with 1 of 2 members running and needs 2: start cp-3 first"},
		"one of five, one down":    {Standing{Cluster: prod, Seen: true, Member: self, Members: 5, Others: 3, Down: []string{"cp-3"}}, false, true, "3 of 4"},
		"one of five, two down":    {Standing{Cluster: prod, Seen: true, Member: self, Members: 5, Others: 2, Down: []string{"cp-3", "cp-4"}}, false, false, "needs 3: start cp-3, cp-4 first"},
		"the last":                 {Standing{Cluster: prod, Seen: true, Member: self, Members: 1}, false, false, "--destroy-cluster prod"},
		"the last, with the word":  {Standing{Cluster: prod, Seen: true, Member: self, Members: 1}, true, true, "the operator said so"},
		"nobody answers":           {Standing{Cluster: prod}, false, false, "start enough of them"},
		"nobody answers, the word": {Standing{Cluster: prod}, true, true, "the operator said so"},
		"holds the claim":          {Standing{Machine: "cp-1", Cluster: prod, Claims: true, Seen: true, Member: self, Members: 3, Others: 2}, false, false, "wait for it"},
	} {
		ok, says := tc.s.MayGo(tc.destroy)
		if ok != tc.ok || !strings.Contains(says, tc.says) {
			t.Errorf("%s: %v, %q; want %v, %q", name, ok, says, tc.ok, tc.says)
		}
	}
}

func TestMayRest(t *testing.T) {
	prod := &inventory.Cluster{Name: "prod"}
	self := &Member{ID: 1, Name: "cp-1"}
	for name, tc := range map[string]struct {
		s    Standing
		ok   bool
		says string
	}{
		"a worker":               {Standing{}, true, "no etcd data"},
		"no member":              {Standing{Cluster: prod, Seen: true, Members: 3, Others: 3}, true, "no member"},
		"one of three":           {Standing{Cluster: prod, Seen: true, Member: self, Members: 3, Others: 2}, true, "2 of 3"},
		"one of three, one down": {Standing{Cluster: prod, Seen: true, Member: self, Members: 3, Others: 1, Down: []string{"cp-3"}}, false, "needs 2 (down: cp-3)"},
		"one of two":             {Standing{Cluster: prod, Seen: true, Member: self, Members: 2, Others: 1}, false, "1 of 2 members running without it, and needs 2"},
		"one of four, one down":  {Standing{Cluster: prod, Seen: true, Member: self, Members: 4, Others: 2, Down: []string{"cp-3"}}, false, "needs 3"},
		"the only one":           {Standing{Cluster: prod, Seen: true, Member: self, Members: 1}, true, "only member"},
		"nobody answers":         {Standing{Cluster: prod}, false, "no control plane"},
		"holds the claim":        {Standing{Machine: "cp-1", Cluster: prod, Claims: true, Seen: true, Member: self, Members: 3, Others: 2}, false, "not done"},
	} {
		ok, says := tc.s.MayRest()
		if ok != tc.ok || !strings.Contains(says, tc.says) {
			t.Errorf("%s: %v, %q; want %v, %q", name, ok, says, tc.ok, tc.says)
		}
	}
}
