package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// rack stands in for a provisiond.
func rack() *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/machines", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"items":[{"name":"cp-1","phase":{"phase":"ready"}},{"name":"w-1","phase":{"phase":"installing"}}]}`)
	})
	mux.HandleFunc("GET /api/v1/machines/{machine}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"title":"Not Found","status":404,"detail":"machine %s: not found"}`, r.PathValue("machine"))
	})
	return httptest.NewServer(mux)
}

func Example() {
	server := rack()
	defer server.Close()

	// Of a real one: unix:///run/provisiond/provisiond.sock, or https:// and a token.
	c, err := client.New(server.URL, client.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	ctx := context.Background()
	for m, err := range client.All[api.Machine](func(after string) (*http.Response, error) {
		return c.ListMachines(ctx, client.ListMachinesParams{Cluster: "prod", After: after, Limit: api.MaxLimit})
	}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(m.Name, "is", m.Phase.Phase)
	}

	_, err = client.Answer[api.Machine](c.GetMachine(ctx, "w-7"))
	var refused *client.Problem
	if errors.As(err, &refused) {
		fmt.Println(refused.Status, err)
	}
	// Output:
	// cp-1 is ready
	// w-1 is installing
	// 404 machine w-7: not found
}
