package cli

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// kind is how the values of a flag become a field.
type kind int

const (
	text  kind = iota // one string
	texts             // a list of strings
	files             // a list of texts, each given itself or as @FILE
	pairs             // an object of KEY=VALUE; KEY- removes one
)

// field is a flag and the API's field it sets. Its path has at most one dot.
type field struct {
	flag, path string
	kind       kind
	usage      string
}

func machineFields() []field {
	return []field{
		{"mac", "macs", texts, "NIC it may boot from, in any notation; the first carries its address (repeat)"},
		{"role", "role", text, "controlplane or worker"},
		{"cluster", "cluster", text, "its cluster"},
		{"address", "address", text, "its one stable IPv6 address (default: allocated)"},
		{"subnet", "subnet", text, "subnet to allocate its address from"},
		{"disk", "install.disk", text, "install disk, such as /dev/sda"},
		{"disk-selector", "install.diskSelector", pairs, "install disk by KEY=VALUE of Talos' InstallDiskSelector (repeat)"},
		{"install-image", "install.image", text, "installer image"},
		{"image", "image", text, "Talos that is netbooted, VERSION or VERSION/SCHEMATIC (default: its cluster's)"},
		{"boot", "boot", text, "uki or ipxe, the way that is tried first, or auto: as its firmware can (default: auto)"},
		{"secure-boot", "secureBoot", text, "on or off: does its firmware start signed programs only? (default: as Talos says, once it has run there)"},
		{"addressing", "addressing", text, "static or dhcpv6 (default: its cluster's)"},
		{"approval", "approval", text, "none or required: a person approves it by the code on its console (default: its cluster's)"},
		{"patch", "patches", files, "Talos config patch, as text or @FILE (repeat)"},
		{"kernel-arg", "kernelArgs", texts, "argument of the netboot kernel line (repeat)"},
		{"label", "labels", pairs, "label KEY=VALUE (repeat)"},
	}
}

func clusterFields() []field {
	return []field{
		{"endpoint", "endpoint", text, "Kubernetes API, such as https://[2001:db8::1]:6443"},
		{"talos-version", "talosVersion", text, "Talos that is netbooted, such as v1.13.6"},
		{"kubernetes-version", "kubernetesVersion", text, "such as 1.36.2"},
		{"schematic", "schematic", text, "Image Factory schematic"},
		{"pod-subnet", "podSubnets", texts, "IPv6 prefix of pods (repeat)"},
		{"service-subnet", "serviceSubnets", texts, "IPv6 prefix of services, /108 or longer (repeat)"},
		{"dns", "dns", texts, "name server (repeat)"},
		{"ntp", "ntp", texts, "time server (repeat)"},
		{"addressing", "addressing", text, "static or dhcpv6"},
		{"approval", "approval", text, "none or required: a person approves each machine by the code on its console (default: none)"},
		{"delivery", "delivery", text, "how booting machines are given their config, https or http (default: https)"},
		{"install-disk", "install.disk", text, "install disk, such as /dev/sda"},
		{"install-disk-selector", "install.diskSelector", pairs, "install disk by KEY=VALUE of Talos' InstallDiskSelector (repeat)"},
		{"install-image", "install.image", text, "installer image"},
		{"patch", "patches", files, "Talos config patch for all machines, as text or @FILE (repeat)"},
		{"control-plane-patch", "controlPlanePatches", files, "patch for control planes (repeat)"},
		{"worker-patch", "workerPatches", files, "patch for workers (repeat)"},
		{"kernel-arg", "kernelArgs", texts, "argument of the netboot kernel line (repeat)"},
	}
}

// bind adds the flags of fields to a command. The function it returns makes the
// JSON object of those that were given: a flag given as "" makes null, which
// removes the field where one is changed.
func bind(cmd *cobra.Command, fields []field) func() (map[string]any, error) {
	for _, f := range fields {
		if f.kind == text {
			cmd.Flags().String(f.flag, "", f.usage)
		} else {
			cmd.Flags().StringArray(f.flag, nil, f.usage)
		}
	}
	return func() (map[string]any, error) {
		object := map[string]any{}
		for _, f := range fields {
			if !cmd.Flags().Changed(f.flag) {
				continue
			}
			value, err := f.value(cmd)
			if err != nil {
				return nil, err
			}
			into, name := object, f.path
			if outer, inner, nested := strings.Cut(f.path, "."); nested {
				if object[outer] == nil {
					object[outer] = map[string]any{}
				}
				into, name = object[outer].(map[string]any), inner
			}
			into[name] = value
		}
		return object, nil
	}
}

func (f *field) value(cmd *cobra.Command) (any, error) {
	flag := cmd.Flags().Lookup(f.flag).Value
	if f.kind == text {
		if s := flag.String(); s != "" {
			return s, nil
		}
		return nil, nil
	}
	// Not GetStringArray, which takes one empty value for none.
	list := flag.(pflag.SliceValue).GetSlice()
	if len(list) == 1 && list[0] == "" {
		return nil, nil
	}
	switch f.kind {
	case files:
		for i, s := range list {
			content, err := textOrFile(f.flag, s, cmd.InOrStdin())
			if err != nil {
				return nil, err
			}
			list[i] = content
		}
	case pairs:
		object := map[string]any{}
		for _, s := range list {
			key, value, ok := strings.Cut(s, "=")
			switch {
			case ok && key != "":
				object[key] = value
			case strings.HasSuffix(s, "-") && len(s) > 1:
				object[strings.TrimSuffix(s, "-")] = nil
			default:
				return nil, usagef("--%s %s: write KEY=VALUE, or KEY- to remove it", f.flag, s)
			}
		}
		return object, nil
	}
	return list, nil
}

// textOrFile reads @FILE, or standard input for @-; anything else is the text.
func textOrFile(flag, s string, stdin io.Reader) (string, error) {
	name, ok := strings.CutPrefix(s, "@")
	if !ok {
		return s, nil
	}
	b, err := readText(flag, name, stdin, maxText)
	return string(b), err
}
