package web

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/api"
)

// A form for what the API calls a spec. What a field is, and what is said of it, is what the
// type of the API says; here are only their order and their names for people.

// formField is a field of a form.
type formField struct {
	Name    string // as the API names it: install.disk
	Label   string
	Help    string
	Example string
	Kind    string   // line, choice, lines (one entry a line), pairs (key=value a line) or patches (each by itself)
	Choices []string // of a choice
	Texts   []string // what is in it: one, but for patches
	Rare    bool     // most leave it as it is
}

// specForm is the form of a spec with what was written or stored, and what is wrong with it.
type specForm struct {
	Fields   []formField
	Problems problems
}

// fieldsOf are the fields of a spec, named and in the order of a table. It panics on a
// name that the spec does not have.
func fieldsOf(spec reflect.Type, table []formField) []formField {
	out := slices.Clone(table)
	for i := range out {
		f := &out[i]
		t := spec
		var field reflect.StructField
		for name := range strings.SplitSeq(f.Name, ".") {
			at := slices.IndexFunc(reflect.VisibleFields(t), func(s reflect.StructField) bool {
				is, _, _ := strings.Cut(s.Tag.Get("json"), ",")
				return is == name
			})
			if at < 0 {
				panic(fmt.Sprintf("%s has no field %s", spec, f.Name)) // right or wrong for everybody
			}
			field = reflect.VisibleFields(t)[at]
			t = field.Type
		}
		f.Help, f.Example = field.Tag.Get("doc"), field.Tag.Get("example")
		switch enum := field.Tag.Get("enum"); {
		case enum != "":
			f.Kind, f.Choices = "choice", strings.Split(enum, ",")
		case strings.HasSuffix(strings.ToLower(f.Name), "patches"):
			f.Kind = "patches"
		case t.Kind() == reflect.Slice:
			f.Kind = "lines"
		case t.Kind() == reflect.Map:
			f.Kind = "pairs"
		default:
			f.Kind = "line"
		}
		f.Texts = []string{""}
		if f.Kind == "patches" {
			f.Texts = nil
		}
	}
	return out
}

// fill puts what is stored into the fields.
func (f *specForm) fill(spec any) error {
	stored, err := asMap(spec)
	if err != nil {
		return err
	}
	for i := range f.Fields {
		field := &f.Fields[i]
		switch v := at(stored, field.Name).(type) {
		case string:
			field.Texts = []string{v}
		case []any:
			var entries []string
			for _, e := range v {
				entries = append(entries, fmt.Sprint(e))
			}
			if field.Kind == "patches" {
				field.Texts = entries
			} else {
				field.Texts = []string{strings.Join(entries, "\n")}
			}
		case map[string]any:
			var pairs []string
			for _, k := range slices.Sorted(maps.Keys(v)) {
				pairs = append(pairs, fmt.Sprintf("%s=%v", k, v[k]))
			}
			field.Texts = []string{strings.Join(pairs, "\n")}
		}
	}
	return nil
}

// read puts what somebody wrote into the fields.
func (f *specForm) read(form url.Values) {
	for i := range f.Fields {
		field := &f.Fields[i]
		field.Texts = nil
		for _, text := range form[field.Name] {
			field.Texts = append(field.Texts, newlines(text))
		}
		if form.Get("more") == field.Name {
			field.Texts = append(field.Texts, "")
		}
		if len(field.Texts) == 0 && field.Kind != "patches" {
			field.Texts = []string{""}
		}
	}
}

// patch is the JSON merge patch (RFC 7396) that makes of a stored spec what was written.
// What is empty is removed.
func (f *specForm) patch(stored any) (map[string]any, error) {
	old, err := asMap(stored)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, field := range f.Fields {
		var v any
		text := ""
		if len(field.Texts) > 0 {
			text = strings.TrimSpace(field.Texts[0])
		}
		switch field.Kind {
		case "lines":
			if all := lines(text); len(all) > 0 {
				v = all
			}
		case "patches":
			if all, _ := field.written(); len(all) > 0 {
				v = all
			}
		case "pairs":
			written, err := pairs(text)
			if err != nil {
				return nil, wrong(field.Name, err)
			}
			all := map[string]any{}
			if before, ok := at(old, field.Name).(map[string]any); ok {
				for k := range before {
					all[k] = nil // removed, unless it is written still
				}
			}
			for k, value := range written {
				all[k] = value
			}
			if len(all) > 0 {
				v = all
			}
		default:
			if text != "" {
				v = text
			}
		}
		put(out, field.Name, v)
	}
	return out, nil
}

// written are the patches that are not blank, and which of the texts each is.
func (f *formField) written() (all []string, index []int) {
	for i, text := range f.Texts {
		if strings.TrimSpace(text) != "" {
			all, index = append(all, text), append(index, i)
		}
	}
	return all, index
}

// wrong puts what the API says is wrong with the fields that it is about.
func (f *specForm) wrong(details []api.Detail) {
	f.Problems = problems{}
	var names []string
	shown := map[string]string{} // of patches, by how they are counted without those that are blank
	for _, field := range f.Fields {
		names = append(names, field.Name)
		if field.Kind == "patches" {
			_, index := field.written()
			for n, i := range index {
				name := fmt.Sprintf("%s[%d]", field.Name, n)
				names = append(names, name)
				shown[name] = fmt.Sprintf("%s[%d]", field.Name, i)
			}
		}
	}
	found := problems{}
	for _, d := range details {
		found.add(d.Location, d.Message, names)
	}
	for name, texts := range found {
		if as, ok := shown[name]; ok {
			name = as
		}
		f.Problems[name] = append(f.Problems[name], texts...)
	}
}

// Follow are the elements that a check brings up to date, as hx-select-oob has them: what
// is wrong, but not the fields, where somebody is typing.
func (f *specForm) Follow() string {
	out := []string{"#checked:innerHTML"}
	for _, field := range f.Fields {
		out = append(out, "#"+problemID(field.Name))
		if field.Kind == "patches" {
			for i := range field.Texts {
				out = append(out, "#"+problemID(field.At(i)))
			}
		}
	}
	return strings.Join(out, ",")
}

// At is the name of one of the patches.
func (f formField) At(i int) string { return fmt.Sprintf("%s[%d]", f.Name, i) }

// Last reports whether a patch is the last of the list.
func (f formField) Last(i int) bool { return i == len(f.Texts)-1 }

// Text is what is in a field other than patches.
func (f formField) Text() string { return strings.Join(f.Texts, "\n") }

// Written reports whether there is anything in a field.
func (f formField) Written() bool { return strings.TrimSpace(f.Text()) != "" }

func asMap(spec any) (map[string]any, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, json.Unmarshal(text, &out)
}

// at is what a tree has at a path such as install.disk; nil: nothing.
func at(tree map[string]any, path string) any {
	name, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		return tree[name]
	}
	branch, _ := tree[name].(map[string]any)
	return at(branch, rest)
}

func put(tree map[string]any, path string, v any) {
	name, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		tree[name] = v
		return
	}
	branch, ok := tree[name].(map[string]any)
	if !ok {
		branch = map[string]any{}
		tree[name] = branch
	}
	put(branch, rest, v)
}
