// Package loaders holds the first-stage boot loaders and the iPXE script beside
// them as one read-only file system, which TFTP and HTTP both serve.
package loaders

import (
	"bytes"
	"debug/pe"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// maxSize bounds a loader. iPXE has 0.2 to 1.2 MB, GRUB a few; a UKI is no loader.
const maxSize = 64 << 20

// autoexec is the script that iPXE 2.0, started over HTTP, looks for beside
// itself.
const autoexec = "autoexec.ipxe"

// Config says what there is to serve.
type Config struct {
	// Files maps names in the tree, "ARCH/FILE.efi", to files on disk.
	Files map[string]string
	// Autoexec is the iPXE script put beside the loaders of each architecture.
	Autoexec []byte
}

// Defaults returns the files that Debian's package ipxe installs. It has none
// for arm64, so a rack of those machines needs the setting.
func Defaults() map[string]string {
	return map[string]string{
		"amd64/snponly.efi": "/usr/lib/ipxe/snponly.efi",
		"amd64/ipxe.efi":    "/usr/lib/ipxe/ipxe.efi",
	}
}

// FS is the loaders as a read-only file system of files two levels deep. It has
// no directories to list. The bytes are read once: firmware asks for the size
// first and for the file later, and a package upgrade in between must not make
// a mixture. Opened files implement [io.ReadSeeker] and [io.ReaderAt].
type FS struct {
	files map[string]content
}

type content struct {
	data    []byte
	modTime time.Time
}

var _ fs.FS = (*FS)(nil)

// New reads the loaders. A file that is missing, or that firmware of the
// architecture could not start, gives a [*inventory.FieldError] with the name of
// the setting, loaders.NAME.
func New(c Config) (*FS, error) {
	l := &FS{files: map[string]content{}}
	for _, name := range slices.Sorted(maps.Keys(c.Files)) {
		arch, err := checkName(name)
		if err != nil {
			return nil, err
		}
		read, err := load(name, c.Files[name], arch)
		if err != nil {
			return nil, err
		}
		l.files[name] = read
		if len(c.Autoexec) > 0 {
			l.files[path.Join(string(arch), autoexec)] = content{data: c.Autoexec, modTime: read.modTime}
		}
	}
	return l, nil
}

// Names lists the files in order.
func (l *FS) Names() []string { return slices.Sorted(maps.Keys(l.files)) }

// Open opens a file by its exact name ([fs.FS]).
func (l *FS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	f, ok := l.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &file{Reader: bytes.NewReader(f.data), info: info{path.Base(name), int64(len(f.data)), f.modTime}}, nil
}

func checkName(name string) (inventory.Arch, error) {
	dir, base, _ := strings.Cut(name, "/")
	arch := inventory.Arch(dir)
	if arch != inventory.AMD64 && arch != inventory.ARM64 {
		return "", field(name, "amd64/FILE.efi or arm64/FILE.efi", "%q names no architecture", name)
	}
	// Names go into URLs and boot options as they are, so they need no escapes.
	// EDK2 goes by the extension when it is given no type.
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
	}
	if strings.Trim(base, ".") == "" || !strings.HasSuffix(base, ".efi") || strings.ContainsFunc(base, func(r rune) bool { return !plain(r) }) {
		return "", field(name, "letters, digits, - _ and . with .efi at the end", "%q is not the file name of a loader", base)
	}
	return arch, nil
}

func load(name, from string, arch inventory.Arch) (content, error) {
	f, err := os.Open(from)
	if err != nil {
		return content{}, field(name, "install the package ipxe, or set the file's path", "%v", err)
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	if err != nil {
		return content{}, field(name, "", "%v", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxSize {
		return content{}, field(name, "", "%s is not a file of at most %d bytes", from, maxSize)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return content{}, field(name, "", "%v", err)
	}
	is, err := peArch(data)
	if err != nil {
		return content{}, field(name, "a UEFI program such as iPXE's snponly.efi", "%s is not one: %v", from, err)
	}
	if is != arch {
		return content{}, field(name, "the file for "+string(arch), "%s is for %s", from, is)
	}
	return content{data, st.ModTime()}, nil
}

// peArch reads for which machine a UEFI program is made (Microsoft PE format,
// "COFF File Header").
func peArch(data []byte) (inventory.Arch, error) {
	f, err := pe.NewFile(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // holds no resource
	switch f.Machine {
	case pe.IMAGE_FILE_MACHINE_AMD64:
		return inventory.AMD64, nil
	case pe.IMAGE_FILE_MACHINE_ARM64:
		return inventory.ARM64, nil
	}
	return "", fmt.Errorf("its machine type %#x is neither amd64 nor arm64", f.Machine)
}

func field(name, fix, format string, args ...any) error {
	return &inventory.FieldError{Field: "loaders." + name, Problem: fmt.Sprintf(format, args...), Fix: fix}
}

// file is an open loader: its own reading position over shared bytes.
type file struct {
	*bytes.Reader
	info info
}

// Stat implements fs.File.
func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }

// Close implements fs.File. There is nothing to close.
func (f *file) Close() error { return nil }

type info struct {
	name    string
	size    int64
	modTime time.Time
}

// Name implements fs.FileInfo.
func (i info) Name() string { return i.name }

// Size implements fs.FileInfo.
func (i info) Size() int64 { return i.size }

// Mode implements fs.FileInfo.
func (i info) Mode() fs.FileMode { return 0o444 }

// ModTime implements fs.FileInfo.
func (i info) ModTime() time.Time { return i.modTime }

// IsDir implements fs.FileInfo.
func (i info) IsDir() bool { return false }

// Sys implements fs.FileInfo.
func (i info) Sys() any { return nil }
