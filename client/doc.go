// Package client calls the operator's API of a provisiond. Its methods, one for each
// operation, are generated from the OpenAPI document of the API; bodies and answers are
// the types of package api. The commands of provisiond are made of it.
//
// A method returns an answer that is a success, or an error: a [*Problem] if provisiond
// refused. [Answer] reads what was answered, [All] every page of a list, and [Follow] a
// stream:
//
//	c, err := client.New("https://rack.example.org:8440", client.Options{Token: token})
//	...
//	m, err := client.Answer[api.Machine](c.GetMachine(ctx, "cp-1"))
//
// The types of answers are in the document, and in the names of methods: GetMachine
// answers an api.Machine, ListMachines pages of it.
package client
