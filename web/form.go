package web

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/api"
)

// machineForm is what an operator says of a machine, as a form has it. What a form does not
// have is left as it is.
type machineForm struct {
	Name, MACs, Role, Cluster, Address, Subnet, Disk, Image, Boot, SecureBoot, Approval, Addressing, KernelArgs, Labels string

	Patches   []string
	LabelKeys []string // of the labels that the machine has; none in a form that was sent
}

// formText is a field of it that is one text.
type formText struct {
	field string // of api.MachineSpec
	label string
	text  *string
}

func (f *machineForm) texts() []formText {
	return []formText{
		{"name", "Name", &f.Name}, {"macs", "MACs", &f.MACs}, {"role", "Role", &f.Role}, {"cluster", "Cluster", &f.Cluster},
		{"address", "Address", &f.Address}, {"subnet", "Subnet", &f.Subnet}, {"install", "Install disk", &f.Disk}, {"image", "Talos", &f.Image},
		{"boot", "Boot", &f.Boot}, {"secureBoot", "Secure Boot", &f.SecureBoot}, {"approval", "Approval", &f.Approval}, {"addressing", "Addressing", &f.Addressing}, {"kernelArgs", "Kernel arguments", &f.KernelArgs}, {"labels", "Labels", &f.Labels},
	}
}

// formOf is the form as it was sent, or as a link fills it in.
func formOf(r *http.Request) machineForm {
	f := machineForm{
		Name: r.FormValue("name"), MACs: r.FormValue("macs"), Role: r.FormValue("role"), Cluster: r.FormValue("cluster"), Address: r.FormValue("address"),
		Subnet: r.FormValue("subnet"), Disk: r.FormValue("disk"), Image: r.FormValue("image"), Boot: r.FormValue("boot"), SecureBoot: r.FormValue("secureBoot"), Approval: r.FormValue("approval"), Addressing: r.FormValue("addressing"),
		KernelArgs: r.FormValue("kernelArgs"), Labels: r.FormValue("labels"),
	}
	f.Patches = r.Form["patch"]
	f.normalise()
	return f
}

// normalise makes of a form what it is once a browser has sent it back: so it can be compared.
func (f *machineForm) normalise() {
	for _, t := range f.texts() {
		*t.text = textOf(*t.text)
	}
	var patches []string
	for _, p := range f.Patches {
		if p = newlines(p); strings.TrimSpace(p) != "" {
			patches = append(patches, p)
		}
	}
	f.Patches = patches
}

// newlines are those of a text as they are stored; browsers send CR LF, whatever they were given.
func newlines(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
}

// textOf are the lines of a text that have something in them, without the space around them.
func textOf(text string) string { return strings.Join(lines(newlines(text)), "\n") }

// formOfMachine is a machine as its form begins.
func formOfMachine(m *api.Machine) machineForm {
	f := machineForm{
		Name: m.Name, MACs: strings.Join(m.MACs, "\n"), Role: m.Role, Cluster: m.Cluster, Address: m.Address, Subnet: m.Subnet, Disk: m.Install.Disk, Image: m.Image,
		Boot: m.Boot, SecureBoot: m.SecureBoot, Approval: m.Approval, Addressing: m.Addressing, KernelArgs: strings.Join(m.KernelArgs, "\n"), Labels: pairsText(m.Labels), Patches: m.Patches,
		LabelKeys: slices.Sorted(maps.Keys(m.Labels)),
	}
	f.normalise()
	return f
}

// spec is a new machine.
func (f *machineForm) spec() (api.MachineSpec, error) {
	labels, err := pairs(f.Labels)
	if err != nil {
		err = wrong("labels", err)
	}
	return api.MachineSpec{
		Name: f.Name, MACs: lines(f.MACs), Role: f.Role, Cluster: f.Cluster, Address: f.Address, Subnet: f.Subnet, Install: api.Install{Disk: f.Disk}, Image: f.Image,
		Boot: f.Boot, SecureBoot: f.SecureBoot,
		Approval: f.Approval, Addressing: f.Addressing, KernelArgs: lines(f.KernelArgs), Labels: labels, Patches: f.Patches,
	}, err
}

// patch is a merge patch (RFC 7396) that makes of a machine as it was what the form says.
func (f *machineForm) patch(was *machineForm) (map[string]any, error) {
	out := map[string]any{}
	before := was.texts()
	for i, now := range f.texts() {
		if *now.text == *before[i].text {
			continue
		}
		switch now.field {
		case "address":
			if *now.text == "" {
				return nil, wrong("address", errors.New("a machine keeps an address: type another, or leave it as it was"))
			}
			out[now.field] = *now.text
		case "macs", "kernelArgs":
			out[now.field] = lines(*now.text)
		case "install":
			out[now.field] = map[string]any{"disk": orNull(*now.text)}
		case "labels":
			labels, err := pairs(*now.text)
			if err != nil {
				return nil, wrong("labels", err)
			}
			change := map[string]any{}
			for _, key := range was.LabelKeys {
				change[key] = nil
			}
			for key, value := range labels {
				change[key] = value
			}
			out[now.field] = change
		default:
			out[now.field] = orNull(*now.text)
		}
	}
	if !slices.Equal(f.Patches, was.Patches) {
		out["patches"] = append([]string{}, f.Patches...)
	}
	return out, nil
}

// orNull is null for what is to be as if it was never said.
func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// meanwhile is a field that somebody else changed while the form was filled in.
type meanwhile struct {
	Label, Was, Now string
	Mine            string // what the form says, if that is neither
}

// rebase takes over what somebody else changed of the fields that were left alone here,
// and tells of all that they changed.
func (f *machineForm) rebase(was, now *machineForm) (changed []meanwhile) {
	before, after := was.texts(), now.texts()
	for i, mine := range f.texts() {
		b, a := *before[i].text, *after[i].text
		if a == b {
			continue
		}
		m := meanwhile{Label: mine.label, Was: b, Now: a}
		if *mine.text == b {
			*mine.text = a
		} else if *mine.text != a {
			m.Mine = *mine.text
		}
		changed = append(changed, m)
	}
	if !slices.Equal(was.Patches, now.Patches) {
		const between = "\n---\n"
		m := meanwhile{Label: "Patches", Was: strings.Join(was.Patches, between), Now: strings.Join(now.Patches, between)}
		if slices.Equal(f.Patches, was.Patches) {
			f.Patches = now.Patches
		} else if !slices.Equal(f.Patches, now.Patches) {
			m.Mine = strings.Join(f.Patches, between)
		}
		changed = append(changed, m)
	}
	return changed
}
