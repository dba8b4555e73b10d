package seed

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kdomanski/iso9660"
	"github.com/siderolabs/go-blockdevice/v2/blkid"
)

var began = time.Date(2026, 11, 26, 12, 30, 59, 7, time.FixedZone("here", 3600))

func testMachine() *Machine {
	return &Machine{
		Name: "cp-1", Instance: "cp-1-order-1", MAC: []byte{0x52, 0x54, 0, 0, 0, 1}, Address: netip.MustParsePrefix("2001:db8::11/64"),
		Gateway: netip.MustParseAddr("fe80::1%eth0"), Nameservers: []netip.Addr{netip.MustParseAddr("2001:db8::53")},
	}
}

// images are the volumes that machines are given, and ones at the edges.
func images(t *testing.T) map[string]struct {
	label string
	files []File
} {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	m := testMachine()
	return map[string]struct {
		label string
		files []File
	}{
		"metal-iso":     {LabelMetalISO, []File{{ConfigYAML, noise(17001)}}},
		"cidata":        {LabelNoCloud, []File{{MetaData, m.MetaData()}, {NetworkConfig, m.NetworkConfig()}, {UserData, noise(40000)}}},
		"one sector":    {LabelMetalISO, []File{{ConfigYAML, noise(sector)}}},
		"a byte more":   {LabelMetalISO, []File{{ConfigYAML, noise(sector + 1)}}},
		"empty files":   {LabelNoCloud, []File{{MetaData, nil}, {UserData, nil}}},
		"longest names": {strings.Repeat("l", maxLabel), []File{{strings.Repeat("a", maxFileName), noise(1)}, {strings.Repeat("b", maxFileName), noise(3 * sector)}}},
	}
}

// TestReaders: each reader that is not ours finds the label and the files that were
// written, letter by letter and byte by byte.
func TestReaders(t *testing.T) {
	readers := map[string]func(t *testing.T, path string) (label string, files map[string][]byte){
		"kdomanski/iso9660": readLibrary, "xorriso": readXorriso,
	}
	for name, c := range images(t) {
		want := map[string][]byte{}
		for _, f := range c.files {
			want[f.Name] = f.Data
		}
		image, err := Image(c.label, began, c.files...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(image)%sector != 0 {
			t.Errorf("%s: %d bytes are no sectors", name, len(image))
		}
		path := filepath.Join(t.TempDir(), "image.iso")
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
		for reader, read := range readers {
			t.Run(name+"/"+reader, func(t *testing.T) {
				label, files := read(t, path)
				if label != c.label {
					t.Errorf("the label is %q, want %q", label, c.label)
				}
				if !maps.EqualFunc(files, want, bytes.Equal) {
					t.Errorf("the files are %q, want %q", slices.Sorted(maps.Keys(files)), slices.Sorted(maps.Keys(want)))
				}
			})
		}
		t.Run(name+"/Talos' blkid", func(t *testing.T) {
			info, err := blkid.ProbePath(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Name != "iso9660" || info.Label == nil || *info.Label != c.label || info.ProbedSize != uint64(len(image)) {
				t.Errorf("it sees %+v", info.ProbeResult)
			}
		})
	}
}

func readLibrary(t *testing.T, path string) (string, map[string][]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	image, err := iso9660.OpenImage(f)
	if err != nil {
		t.Fatal(err)
	}
	label, err := image.Label()
	if err != nil {
		t.Fatal(err)
	}
	root, err := image.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	children, err := root.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, c := range children {
		if !c.ModTime().Equal(began.Truncate(time.Second)) {
			t.Errorf("%s is of %v", c.Name(), c.ModTime())
		}
		if files[c.Name()], err = io.ReadAll(c.Reader()); err != nil {
			t.Fatal(err)
		}
	}
	return label, files
}

func readXorriso(t *testing.T, path string) (string, map[string][]byte) {
	t.Helper()
	xorriso, err := exec.LookPath("xorriso")
	if err != nil {
		t.Skip("LEFT OUT: there is no xorriso (package xorriso)")
	}
	to := filepath.Join(t.TempDir(), "out")
	var warned bytes.Buffer
	cmd := exec.CommandContext(t.Context(), xorriso, "-abort_on", "WARNING", "-return_with", "WARNING", "32",
		"-osirrox", "on", "-indev", path, "-pvd_info", "-extract", "/", to)
	cmd.Stderr = &warned
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &warned)
	}
	label := ""
	for line := range strings.Lines(string(out)) {
		if s, ok := strings.CutPrefix(line, "Volume Id    : "); ok {
			label = strings.TrimSpace(s)
		}
	}
	if err := os.Chmod(to, 0o700); err != nil { //nolint:gosec // a folder
		t.Fatal(err)
	}
	return label, readFolder(t, to)
}

func readFolder(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o400 {
			t.Errorf("%s has mode %v: anybody may read it", e.Name(), info.Mode())
		}
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// TestImageAgain: a range that is read later is of the same image.
func TestImageAgain(t *testing.T) {
	m := testMachine()
	first, err := m.NoCloudISO([]byte("version: v1alpha1\n"), began)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.NoCloudISO([]byte("version: v1alpha1\n"), began.In(time.UTC))
	if err != nil || !bytes.Equal(first, again) {
		t.Errorf("another image: %v", err)
	}
}

func TestImageRefuses(t *testing.T) {
	many := make([]File, 40)
	for i := range many {
		many[i].Name = fmt.Sprintf("file%02d", i)
	}
	for _, c := range []struct {
		name, label string
		at          time.Time
		files       []File
	}{
		{"no label", "", began, nil},
		{"long label", strings.Repeat("l", 33), began, nil},
		{"no time", "x", time.Time{}, nil},
		{"a far time", "x", began.AddDate(200, 0, 0), nil},
		{"upper case", "x", began, []File{{"User-data", nil}}},
		{"a folder", "x", began, []File{{"a/b", nil}}},
		{"the parent", "x", began, []File{{"..", nil}}},
		{"no name", "x", began, []File{{"", nil}}},
		{"a long name", "x", began, []File{{strings.Repeat("a", 65), nil}}},
		{"not sorted", "x", began, []File{{"b", nil}, {"a", nil}}},
		{"twice", "x", began, []File{{"a", nil}, {"a", nil}}},
		{"too large", "x", began, []File{{"a", make([]byte, maxFile+1)}}},
		{"too many", "x", began, many},
	} {
		if image, err := Image(c.label, c.at, c.files...); err == nil || image != nil {
			t.Errorf("%s: %d bytes, %v", c.name, len(image), err)
		}
	}
}
