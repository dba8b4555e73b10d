// Command generate writes the OpenAPI document of the operator's API to standard
// output, as oapi-codegen takes it to make client/operations.gen.go; make generate runs
// both. Of the document's schemas nothing is left: bodies are the types of package api
// that the document was made from, and so the client has no copies of them.
package main

import (
	"fmt"
	"io"
	"os"
	"path"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/internal/admin"
)

func main() {
	if err := write(os.Stdout, admin.Document("v1")); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func write(out io.Writer, doc *huma.OpenAPI) error {
	doc.Components.SecuritySchemes = nil
	for _, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Put, item.Post, item.Delete, item.Patch} {
			if op == nil {
				continue
			}
			if err := simplify(op, doc.Components.Schemas); err != nil {
				return fmt.Errorf("%s: %w", op.OperationID, err)
			}
		}
	}
	text, err := doc.Downgrade() // oapi-codegen knows OpenAPI 3.0
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

// simplify leaves of an operation what a method is made of. What is no type in Go is for
// the server to check.
func simplify(op *huma.Operation, schemas huma.Registry) error {
	op.Security = nil
	op.Responses = map[string]*huma.Response{"default": {Description: "See Answer"}}
	for _, p := range op.Parameters {
		p.Schema.Enum = nil
		if p.Schema.Type == huma.TypeInteger {
			p.Schema.Format = "" // int
		}
	}
	if op.RequestBody == nil {
		return nil
	}
	for _, content := range op.RequestBody.Content {
		of := "map[string]any" // a merge patch
		switch {
		case content.Schema.Format == "binary":
			of = "io.Reader"
		case content.Schema.Ref != "":
			t := schemas.TypeFromRef(content.Schema.Ref)
			if t == nil || path.Base(t.PkgPath()) != "api" {
				return fmt.Errorf("the body is of %v: it has to be a type of package api", t)
			}
			of = t.String()
		}
		content.Schema = &huma.Schema{Type: huma.TypeObject, Extensions: map[string]any{"x-go-type": of}}
	}
	return nil
}
