package seed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// The libraries that write ISO 9660 (kdomanski/iso9660, go-diskfs) put what they write
// into files in a temporary folder first, which here are the keys of a cluster, and the
// time of day into the image, which has to be the same at each read of a range. What is
// needed is one directory of a few files. In tests others read it: one of the libraries,
// xorriso, and Talos' own reader of labels.

// File is one on a volume.
type File struct {
	Name string // of letters in lower case, digits, dots and hyphens
	Data []byte
}

const (
	sector      = 2048
	systemArea  = 16 // sectors that are left to boot loaders
	pathTableL  = systemArea + 2
	pathTableM  = systemArea + 3
	rootSector  = systemArea + 4
	firstFile   = systemArea + 5
	pathEntry   = 10 // octets of the root's entry in a path table
	maxFile     = 64 << 20
	maxLabel    = 32
	maxFileName = 64
)

// ErrImage: a volume cannot hold what it was asked to.
var ErrImage = errors.New("not a volume")

// Image makes an ISO 9660 volume (ECMA-119) with Rock Ridge names (IEEE P1282). All
// files are in its root and readable by root alone. The label and names stay as they
// are, in lower case: Talos and Linux compare them letter by letter.
func Image(label string, at time.Time, files ...File) ([]byte, error) {
	if label == "" || len(label) > maxLabel {
		return nil, fmt.Errorf("label %q of more than %d characters, or of none: %w", label, maxLabel, ErrImage)
	}
	at = at.UTC()
	if y := at.Year(); y < 1970 || y > 1900+255 {
		return nil, fmt.Errorf("year %d: %w", y, ErrImage)
	}
	root := append(entry("\x00", rootSector, sector, true, at, rockRoot()), entry("\x01", rootSector, sector, true, at, posix(true))...)
	next, last := firstFile, ""
	var data []byte
	for _, f := range files {
		switch {
		case !validName(f.Name):
			return nil, fmt.Errorf("file name %q: %w", f.Name, ErrImage)
		case f.Name <= last: // directories are sorted
			return nil, fmt.Errorf("file %q after %q: %w", f.Name, last, ErrImage)
		case len(f.Data) > maxFile:
			return nil, fmt.Errorf("file %s of %d bytes: %w", f.Name, len(f.Data), ErrImage)
		}
		last = f.Name
		root = append(root, entry(f.Name+";1", next, len(f.Data), false, at, append(posix(false), rockName(f.Name)...))...)
		data = append(data, f.Data...)
		data = append(data, make([]byte, -len(f.Data)&(sector-1))...)
		next = firstFile + len(data)/sector
	}
	if len(root) > sector {
		return nil, fmt.Errorf("too many files: %w", ErrImage)
	}
	image := make([]byte, firstFile*sector, next*sector)
	primary(image[systemArea*sector:], label, next, at)
	copy(image[(systemArea+1)*sector:], "\xffCD001\x01") // and no other volume descriptor
	table := image[pathTableL*sector:]
	table[0], table[8] = 1, 0
	binary.LittleEndian.PutUint32(table[2:], rootSector)
	binary.LittleEndian.PutUint16(table[6:], 1)
	table = image[pathTableM*sector:]
	table[0], table[8] = 1, 0
	binary.BigEndian.PutUint32(table[2:], rootSector)
	binary.BigEndian.PutUint16(table[6:], 1)
	copy(image[rootSector*sector:], root)
	return append(image, data...), nil
}

func validName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-' {
			return false
		}
	}
	return s != "" && len(s) <= maxFileName && s[0] != '.'
}

// primary writes the primary volume descriptor (ECMA-119 section 8.4).
func primary(b []byte, label string, sectors int, at time.Time) {
	b = b[:sector]
	copy(b, "\x01CD001\x01")
	for _, text := range [][2]int{{8, 72}, {190, 813}} {
		for i := text[0]; i < text[1]; i++ {
			b[i] = ' '
		}
	}
	copy(b[40:], label)
	both32(b[80:], uint32(sectors))
	both16(b[120:], 1) // volumes in the set
	both16(b[124:], 1) // which this is
	both16(b[128:], sector)
	both32(b[132:], pathEntry)
	binary.LittleEndian.PutUint32(b[140:], pathTableL)
	binary.BigEndian.PutUint32(b[148:], pathTableM)
	copy(b[156:], entry("\x00", rootSector, sector, true, at, nil))
	never := "0000000000000000\x00"
	when := at.Format("20060102150405") + "00\x00"
	copy(b[813:], when)  // created
	copy(b[830:], when)  // modified
	copy(b[847:], never) // expires
	copy(b[864:], when)  // effective
	b[881] = 1
}

// entry is a directory record (ECMA-119 section 9.1) with its system use area.
func entry(name string, at, size int, directory bool, when time.Time, use []byte) []byte {
	length := 33 + len(name)
	length += length & 1
	b := make([]byte, length, length+len(use)+1)
	both32(b[2:], uint32(at))
	both32(b[10:], uint32(size))
	copy(b[18:], []byte{byte(when.Year() - 1900), byte(when.Month()), byte(when.Day()), byte(when.Hour()), byte(when.Minute()), byte(when.Second()), 0})
	if directory {
		b[25] = 2
	}
	both16(b[28:], 1)
	b[32] = byte(len(name))
	copy(b[33:], name)
	b = append(b, use...)
	if len(b)&1 != 0 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

// rockRoot says that Rock Ridge is used (SUSP section 5: SP and ER).
func rockRoot() []byte {
	const id, what = "RRIP_1991A", "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS"
	b := []byte{'S', 'P', 7, 1, 0xbe, 0xef, 0}
	b = append(b, posix(true)...)
	b = append(b, 'E', 'R', byte(8+len(id)+len(what)), 1, byte(len(id)), byte(len(what)), 0, 1)
	return append(append(b, id...), what...)
}

// rockName is a file's name as POSIX has it (RRIP section 4.1.4).
func rockName(s string) []byte {
	return append([]byte{'N', 'M', byte(5 + len(s)), 1, 0}, s...)
}

// posix is mode, links and owner (RRIP section 4.1.1).
func posix(directory bool) []byte {
	mode, links := uint32(0o100400), uint32(1)
	if directory {
		mode, links = 0o040500, 2
	}
	b := make([]byte, 36)
	copy(b, []byte{'P', 'X', 36, 1})
	both32(b[4:], mode)
	both32(b[12:], links)
	return b
}

// both32 writes a number twice, for machines of either byte order.
func both32(b []byte, v uint32) {
	binary.LittleEndian.PutUint32(b, v)
	binary.BigEndian.PutUint32(b[4:], v)
}

func both16(b []byte, v uint16) {
	binary.LittleEndian.PutUint16(b, v)
	binary.BigEndian.PutUint16(b[2:], v)
}
