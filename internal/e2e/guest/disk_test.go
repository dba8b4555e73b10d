//go:build linux

package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestState(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(256 << 20); err != nil {
		t.Fatal(err)
	}
	if s, err := readState(disk); s != nil || err != nil {
		t.Fatalf("a blank disk holds %+v, %v", s, err)
	}
	want := &state{Config: []byte("version: v1alpha1\n"), Etcd: "one", disk: disk}
	if err := want.write(); err != nil {
		t.Fatal(err)
	}
	got, err := readState(disk)
	if err != nil || got == nil || string(got.Config) != string(want.Config) || got.Etcd != want.Etcd || got.disk != disk {
		t.Fatalf("read %+v, %v, want %+v", got, err, want)
	}
	if _, err := f.WriteAt([]byte{'x'}, stateOffset+60); err != nil {
		t.Fatal(err)
	}
	if s, err := readState(disk); err == nil {
		t.Errorf("a broken state was read: %+v", s)
	}
}
