//go:build e2e

package e2e

import (
	"cmp"
	"debug/elf"
	"debug/pe"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// images are the files that stand for Talos.
type images struct {
	arch      string
	kernel    string // Debian's for virtual machines
	initramfs string // the guest and the drivers it needs
	stub      string // systemd's, for UKIs
	disk      string // what the installer writes: zstd of a FAT with a UKI
}

// installedLine is the kernel line of the installed system. As in Talos it
// carries nothing of the netboot: no address, no config, no sinks.
const installedLine = "console=%s talos.platform=metal slab_nomerge pti=on " + testKernelArgs

// testKernelArgs are for the emulator: without the first the kernel may stop
// with "IO-APIC + timer doesn't work" when the host is busy.
const testKernelArgs = "no_timer_check quiet"

// drivers of the virtual machine; what they depend on is found.
var drivers = []string{"virtio_pci", "virtio_net", "virtio_blk"}

// buildImages makes the images for a board. What its disk will start from is signed if
// its firmware wants that.
func buildImages(t *testing.T, dir string, b board) images {
	t.Helper()
	packages := debianPackages(t, b.arch)
	root := filepath.Join(dir, "root")
	for _, d := range []string{"dev", "proc", "sys", "tmp", "modules"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	buildBinary(t, "./guest", b.arch, filepath.Join(root, "init"))
	installDrivers(t, packages, filepath.Join(root, "modules"))
	im := images{
		arch: b.arch, kernel: one(t, filepath.Join(packages, "boot/vmlinuz-*")), initramfs: filepath.Join(dir, "initramfs"),
		stub: one(t, filepath.Join(packages, "usr/lib/systemd/boot/efi/linux*.efi.stub")), disk: filepath.Join(dir, "disk.zst"),
	}
	cpio := shell(t, root, "find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet --reproducible")
	compress(t, cpio, im.initramfs, zstd.SpeedBetterCompression)

	uki := filepath.Join(dir, "uki.efi")
	buildUKI(t, b, im, uki)
	if b.secure {
		key := snakeoilKey(t, dir)
		command(t, "sbsign", "--key", key, "--cert", snakeoilCertificate, "--output", uki, uki)
	}
	raw := filepath.Join(dir, "disk.raw")
	command(t, "mformat", "-i", raw, "-C", "-T", "131072", "-h", "64", "-s", "32", "::") // 64 MiB
	command(t, "mmd", "-i", raw, "::/EFI", "::/EFI/BOOT")
	command(t, "mcopy", "-i", raw, uki, "::/EFI/BOOT/"+b.loader)
	content, err := os.ReadFile(raw)
	must(t, err)
	compress(t, content, im.disk, zstd.SpeedFastest)
	return im
}

// debianPackages unpacks the kernel and systemd's UEFI stub, without installing
// them, into the user's cache, under the kernel's version.
func debianPackages(t *testing.T, arch string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	must(t, err)
	cache = filepath.Join(cache, "provisiond-e2e")
	apt := aptFor(t, arch, filepath.Join(cache, "apt-"+arch))
	var kernel string
	for line := range strings.Lines(command(t, "apt-cache", append(apt, "depends", "linux-image-cloud-"+arch)...)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			kernel = "linux-image-" + name
		}
	}
	if kernel == "" {
		t.Fatalf("apt knows no linux-image-cloud-%s: run apt-get update", arch)
	}
	dir := filepath.Join(cache, kernel)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	temp, err := os.MkdirTemp(cache, "unpack-")
	must(t, err)
	defer func() { _ = os.RemoveAll(temp) }()
	shell(t, temp, `apt-get download -qq "$@" && for p in *.deb; do dpkg -x $p tree; done`, append(apt, kernel, "systemd-boot-efi")...)
	must(t, os.Rename(filepath.Join(temp, "tree"), dir))
	return dir
}

// aptFor returns the options with which apt sees the packages of an architecture. Those
// of another one than the host's are listed in dir, so that the host's apt and dpkg
// know as little of them as before.
func aptFor(t *testing.T, arch, dir string) []string {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	if arch == strings.TrimSpace(command(t, "dpkg", "--print-architecture")) {
		return nil
	}
	installed := filepath.Join(dir, "status")
	must(t, os.WriteFile(installed, nil, 0o644))
	for _, d := range []string{"lists/partial", "archives/partial"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	options := []string{
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch, "-o", "APT::Sandbox::User=root",
		"-o", "Dir::State=" + dir, "-o", "Dir::State::status=" + installed, "-o", "Dir::Cache=" + dir,
	}
	command(t, "apt-get", append(options, "update", "-qq")...)
	return options
}

// installDrivers copies the drivers and everything they depend on, and lists
// them in an order in which they can be loaded.
func installDrivers(t *testing.T, packages, to string) {
	t.Helper()
	found := map[string]string{}
	modules := one(t, filepath.Join(packages, "lib/modules/*"))
	must(t, filepath.WalkDir(modules, func(path string, _ os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			found[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	}))
	var order []string
	var add func(name string)
	add = func(name string) {
		path := found[name]
		if path == "" {
			t.Fatalf("the kernel package has no module %s.ko", name)
		}
		for _, needs := range dependencies(t, path) {
			add(needs)
		}
		if file := filepath.Base(path); !slices.Contains(order, file) {
			order = append(order, file)
			copyFile(t, path, filepath.Join(to, file))
		}
	}
	for _, name := range drivers {
		add(name)
	}
	must(t, os.WriteFile(filepath.Join(to, "order"), []byte(strings.Join(order, "\n")), 0o644))
}

// dependencies reads depends= from a kernel module.
func dependencies(t *testing.T, path string) []string {
	t.Helper()
	f, err := elf.Open(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	section := f.Section(".modinfo")
	if section == nil {
		t.Fatalf("%s is no kernel module", path)
	}
	info, err := section.Data()
	must(t, err)
	for field := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ",")
		}
	}
	return nil
}

// buildUKI puts kernel, initramfs and kernel line into systemd's UEFI stub, as
// sections behind its own (systemd-stub(7)).
func buildUKI(t *testing.T, b board, im images, to string) {
	t.Helper()
	f, err := pe.Open(im.stub)
	must(t, err)
	defer func() { _ = f.Close() }()
	optional, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		t.Fatalf("%s is not for 64 bits", im.stub)
	}
	last := slices.MaxFunc(f.Sections, func(a, b *pe.Section) int {
		return cmp.Compare(a.VirtualAddress, b.VirtualAddress)
	})
	const page = 4096
	up := func(n uint64) uint64 { return (n + page - 1) / page * page }
	at := optional.ImageBase + up(uint64(last.VirtualAddress)+uint64(last.VirtualSize))

	line := filepath.Join(filepath.Dir(to), "cmdline")
	must(t, os.WriteFile(line, fmt.Appendf(nil, installedLine, b.console), 0o644))
	var args []string
	for _, s := range []struct{ name, file string }{{".cmdline", line}, {".linux", im.kernel}, {".initrd", im.initramfs}} {
		info, err := os.Stat(s.file)
		must(t, err)
		args = append(args, "--add-section", s.name+"="+s.file, "--change-section-vma", fmt.Sprintf("%s=%#x", s.name, at))
		at += up(uint64(info.Size()))
	}
	command(t, b.objcopy, append(args, im.stub, to)...)
}

// buildBinary compiles a package of this module as one static file.
func buildBinary(t *testing.T, pkg, arch, to string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
}

func compress(t *testing.T, data []byte, to string, level zstd.EncoderLevel) {
	t.Helper()
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithWindowSize(8<<20)) // the kernel takes 8 MiB
	must(t, err)
	must(t, os.WriteFile(to, z.EncodeAll(data, nil), 0o644))
}

// one returns the only file that matches.
func one(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("%s: %d files match, want one", pattern, len(files))
	}
	return files[0]
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, content, 0o644))
}

// command runs a program to its end and returns its standard output.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	return string(output(t, exec.Command(name, args...)))
}

func shell(t *testing.T, dir, script string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-euc", script, "sh"}, args...)...)
	cmd.Dir = dir
	return output(t, cmd)
}

func output(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
