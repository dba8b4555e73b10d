package admin

import (
	"fmt"
	"testing"
)

// TestPlaces: nobody keeps the others out, and a place that was left is free.
func TestPlaces(t *testing.T) {
	p := NewPlaces(8)
	ada := within(t.Context(), &Principal{Name: "ada", Via: ViaToken})
	first, ok := p.Take(ada)
	if _, again := p.Take(ada); !ok || !again {
		t.Fatal("there is no place")
	}
	if _, ok := p.Take(ada); ok {
		t.Error("one has more than a quarter")
	}
	if _, ok := p.Take(within(t.Context(), &Principal{Name: "ada", Via: ViaOIDC})); !ok {
		t.Error("somebody else of that name has none")
	}
	for i := range 5 {
		if _, ok := p.Take(within(t.Context(), &Principal{Name: fmt.Sprint(i), Via: ViaToken})); !ok {
			t.Errorf("%d has none", i)
		}
	}
	eve := within(t.Context(), &Principal{Name: "eve", Via: ViaToken})
	if _, ok := p.Take(eve); ok || p.Taken() != 8 {
		t.Errorf("%d are taken", p.Taken())
	}
	first()
	if _, ok := p.Take(eve); !ok {
		t.Error("a place that was left is not free")
	}
}
