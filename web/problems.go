package web

import (
	"errors"
	"net/http"
	"strings"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// problems are what is wrong with a form: by field, as the API names it, and under "" what
// is about none of them.
type problems map[string][]string

// problemsOf is what the API says is wrong with what was asked for, to be shown in the form
// that it came from. fields are those of the form: what is said of others is about none.
// ok is false for an error that no other entry would mend.
func problemsOf(err error, fields ...string) (p problems, ok bool) {
	details, ok := detailsOf(err)
	if !ok {
		return nil, false
	}
	p = problems{}
	for _, d := range details {
		p.add(d.Location, d.Message, fields)
	}
	return p, true
}

// detailsOf is the same as the API says it: at least one.
func detailsOf(err error) (details []api.Detail, ok bool) {
	var problem *client.Problem
	if !errors.As(err, &problem) || problem.Status >= http.StatusInternalServerError || problem.Status == http.StatusForbidden {
		return nil, false
	}
	if len(problem.Errors) == 0 {
		return []api.Detail{{Message: problem.Error()}}, true
	}
	return problem.Errors, true
}

// add puts a problem with its field: that of patches[1].machine is patches[1], and so is
// that of cluster.patches[1], which is how a config says where it comes from.
func (p problems) add(location, message string, fields []string) {
	at := ""
	for _, prefix := range []string{"body.", "cluster."} {
		location = strings.TrimPrefix(location, prefix)
	}
	for _, f := range fields {
		if rest, is := strings.CutPrefix(location, f); is && (rest == "" || rest[0] == '.' || rest[0] == '[') && len(f) > len(at) {
			at = f
		}
	}
	p[at] = append(p[at], message)
}

// wrong is what is wrong with a field, said here as the API says it.
func wrong(field string, err error) error {
	return &client.Problem{Problem: api.Problem{Status: http.StatusUnprocessableEntity, Detail: err.Error(), Errors: []api.Detail{{Location: "body." + field, Message: err.Error()}}}}
}

// Of is what is wrong with a field.
func (p problems) Of(field string) string { return strings.Join(p[field], "; ") }
