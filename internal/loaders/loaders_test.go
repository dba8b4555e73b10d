package loaders

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/provisiond/provisiond/internal/inventory"
)

// program makes a file with the headers of a UEFI program.
func program(t *testing.T, machine uint16, body string) string {
	t.Helper()
	b := make([]byte, 0x80+4+20)
	copy(b, "MZ")
	b[0x3c] = 0x80
	copy(b[0x80:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[0x84:], machine)
	return write(t, append(b, body...))
}

func write(t *testing.T, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "loader")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTree(t *testing.T) {
	amd64, arm64 := program(t, 0x8664, "for amd64"), program(t, 0xaa64, "for arm64")
	l, err := New(Config{
		Files:    map[string]string{"amd64/snponly.efi": amd64, "amd64/ipxe.efi": amd64, "arm64/snponly.efi": arm64},
		Autoexec: []byte("#!ipxe\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"amd64/autoexec.ipxe", "amd64/ipxe.efi", "amd64/snponly.efi", "arm64/autoexec.ipxe", "arm64/snponly.efi"}
	if got := l.Names(); !slices.Equal(got, want) {
		t.Errorf("names are %v, want %v", got, want)
	}
	for name, from := range map[string]string{"amd64/snponly.efi": amd64, "arm64/snponly.efi": arm64} {
		disk, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		// The tree keeps what it read at the start.
		if err := os.WriteFile(from, []byte("replaced by an upgrade"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := l.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := f.Stat(); err != nil || st.Size() != int64(len(disk)) || st.Name() != filepath.Base(name) || st.IsDir() {
			t.Errorf("%s: stat gives %v, %v", name, st, err)
		}
		if err := iotest.TestReader(f.(io.ReadSeeker), disk); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenOnlyWhatIsListed(t *testing.T) {
	l, err := New(Config{Files: map[string]string{"amd64/snponly.efi": program(t, 0x8664, "")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "/", "amd64", "amd64/", "/amd64/snponly.efi", "amd64/../amd64/snponly.efi", "../etc/passwd", "amd64/SNPONLY.EFI", "amd64/autoexec.ipxe"} {
		if f, err := l.Open(name); err == nil {
			t.Errorf("opened %q: %v", name, f)
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("opening %q: %v", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := program(t, 0x8664, "")
	for _, c := range []struct{ name, from, want string }{
		{"amd64/missing.efi", "/nonexistent/snponly.efi", "no such file"},
		{"amd64/text.efi", write(t, []byte("not a program")), "is not one"},
		{"amd64/empty.efi", write(t, nil), "is not one"},
		{"amd64/dir.efi", t.TempDir(), "is not a file"},
		{"amd64/wrong.efi", program(t, 0xaa64, ""), "is for arm64"},
		{"arm64/wrong.efi", good, "is for amd64"},
		{"amd64/ia32.efi", program(t, 0x14c, ""), "is not one"},
		{"i386/x.efi", good, "names no architecture"},
		{"snponly.efi", good, "names no architecture"},
		{"amd64/", good, "not the file name"},
		{"amd64/.efi/../x.efi", good, "not the file name"},
		{"amd64/two words.efi", good, "not the file name"},
		{"amd64/undionly.kpxe", good, "not the file name"},
		{"amd64/autoexec.ipxe", good, "not the file name"},
	} {
		_, err := New(Config{Files: map[string]string{c.name: c.from}})
		var fe *inventory.FieldError
		if !errors.As(err, &fe) || fe.Field != "loaders."+c.name || !strings.Contains(fe.Problem, c.want) {
			t.Errorf("%s: error is %v, want %q on loaders.%s", c.name, err, c.want, c.name)
		}
	}
}
