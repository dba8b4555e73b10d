package client

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"

	"github.com/provisiond/provisiond/api"
)

// Answer reads the answer of a method and closes it: JSON, or as it is if T is []byte.
func Answer[T any](resp *http.Response, err error) (T, error) {
	var v T
	if err != nil {
		return v, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or the error says more
	if text, ok := any(&v).(*[]byte); ok {
		*text, err = io.ReadAll(resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(&v)
	}
	if err != nil {
		return v, fmt.Errorf("reading the answer of %s: %w", source(resp), err)
	}
	return v, nil
}

// Done is for methods that answer nothing, or nothing of interest.
func Done(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	_ = resp.Body.Close() // what was asked for has been done
	return nil
}

// All reads all of a list, page by page: page calls the method for what comes after a
// cursor, the parameter After. An error is the last that is handed on.
func All[T any](page func(after string) (*http.Response, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for after := ""; ; {
			list, err := Answer[api.List[T]](page(after))
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range list.Items {
				if !yield(item, nil) {
					return
				}
			}
			if list.Next == "" || list.Next == after {
				return
			}
			after = list.Next
		}
	}
}
