package httpconfig

import (
	"errors"
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/internal/inventory"
)

// The scripts keep to what iPXE of 2019 (Debian 12) knows. They run on a machine
// nobody watches, so none ends at a prompt.

// entryScript is for an iPXE that was sent to no NIC's script: it goes on to
// its own. The expansions are iPXE's; the serial number is last and escaped,
// since vendors put spaces into it.
func entryScript(u URLs) string {
	return "#!ipxe\n" +
		"chain --replace --autofree " + u.ownScript() + "\n"
}

// Autoexec is the script that iPXE 2.0, started over HTTP, finds beside itself.
// It saves the 17 s in which iPXE else waits for a DHCPv4 server.
func Autoexec(u URLs) []byte {
	return []byte("#!ipxe\n" +
		"ifconf -c ipv6 net0 || ifconf\n" +
		"chain " + u.ownScript() + " || exit 1\n")
}

func (u URLs) ownScript() string {
	return u.base() + strings.Replace(routeScript, "{mac}", "${net0/mac}", 1) + "?arch=${buildarch}&uuid=${uuid}&serial=${serial:uristring}"
}

// installScript starts Talos. If a download fails it asks for its script again,
// for as long as it takes: the plan may have changed meanwhile.
func installScript(what, kernel, initramfs, line, again string) (string, error) {
	if err := checkLine(line); err != nil {
		return "", err
	}
	// iPXE names an image by the last part of its path. The argument initrd=
	// makes the EFI stub of the kernel find it: by file name in iPXE of 2019,
	// and harmless beside LoadFile2 of 2.0.
	return "#!ipxe\n" +
		"echo provisiond: " + plain(what) + "\n" +
		"kernel " + kernel + " initrd=initramfs " + line + " || goto failed\n" +
		"initrd " + initramfs + " || goto failed\n" +
		"boot || goto failed\n" +
		":failed\n" +
		"echo provisiond: could not start Talos, asking again in 10 seconds\n" +
		"imgfree\n" +
		"sleep 10\n" +
		"chain --replace --autofree " + again + " || goto failed\n", nil
}

// retryScript says why there is nothing yet, and asks again after some seconds.
func retryScript(reason, again string, seconds int) string {
	return "#!ipxe\n" +
		":again\n" +
		"echo provisiond: " + plain(reason) + "\n" +
		fmt.Sprintf("sleep %d\n", seconds) +
		"chain --replace --autofree " + again + " || goto again\n"
}

// leaveScript gives the machine back to its firmware, which goes on with the
// next boot option: its disk. The status matters: after one that ends well UEFI
// stops at its menu (UEFI specification 2.10, section 3.1.1).
func leaveScript(reason string) string {
	return "#!ipxe\n" +
		"echo provisiond: " + plain(reason) + "\n" +
		"sleep 3\n" +
		"exit 1\n"
}

// plain makes text safe to be echoed by iPXE, which expands ${...} and ends a
// command at || && ; and #, and short enough for a screen.
func plain(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(s), " ")
	return strings.Map(func(r rune) rune {
		switch {
		case r <= ' ' || r > '~':
			if r == ' ' {
				return r
			}
			return '?'
		case strings.ContainsRune("${}|&;#\\", r):
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
}

// checkLine refuses a kernel line that iPXE would change on the way.
func checkLine(line string) error {
	if strings.Contains(line, "${") {
		return &inventory.FieldError{Field: "kernelArgs", Problem: "the kernel line has ${ in it, which iPXE replaces", Fix: "write the value itself"}
	}
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
		return &inventory.FieldError{Field: "kernelArgs", Problem: "the kernel line has a character in it that is no printable ASCII", Fix: "leave it out"}
	}
	for arg := range strings.FieldsSeq(line) {
		if arg == "||" || arg == "&&" || arg == ";" || arg[0] == '#' {
			return &inventory.FieldError{Field: "kernelArgs", Problem: fmt.Sprintf("iPXE ends a command at %q", arg), Fix: "leave it out"}
		}
	}
	if line == "" {
		return errors.New("the kernel line is empty")
	}
	return nil
}
