package inventory

import "time"

// Transfer is a boot file on its way to a machine. It is known to who serves it, while
// it goes on, and stored nowhere.
type Transfer struct {
	Step    string    // the file: "kernel" or "initramfs"
	Sent    int64     // bytes, from the start of the file: at most Size
	Size    int64     // bytes
	Started time.Time // of the request
}
