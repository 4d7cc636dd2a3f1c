package authz

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// detailType is the type of authorization details (RFC 9396 §2.1) that says what a delegation token is for.
const detailType = "social_operation"

// A detail is what is asked for and granted, in the words of RFC 9396. In a request everything but the type may be left
// out.
type detail struct {
	Type      string       `json:"type"`
	Locations []string     `json:"locations,omitempty"`
	Domain    scope.Domain `json:"domain,omitzero"`
	Actions   []string     `json:"actions,omitempty"`
	Uses      int          `json:"uses,omitempty"` // at least 1; left out: there is no count
}

// detailsOf says what a token is for.
func detailsOf(issuer string, domain scope.Domain, actions []string, uses int) []detail {
	d := detail{Type: detailType, Domain: domain, Actions: actions}
	if issuer != "" {
		d.Locations = []string{issuer}
	}
	if uses != grant.Unlimited {
		d.Uses = uses
	}
	return []detail{d}
}

// exactly refuses what is not the grant's. A nil detail asks for nothing.
func (d *detail) exactly(g *grant.Grant) error {
	if d == nil || (d.Domain.IsZero() || d.Domain == g.Domain) && (len(d.Actions) == 0 || slices.Equal(d.Actions, g.Actions)) && (d.Uses == 0 || d.Uses == g.Uses) {
		return nil
	}
	return badDetails("not exactly what the grant allows; leave it out")
}

// actionsOf are the actions of a set that is of one domain.
func actionsOf(s scope.Set) []string {
	var out []string
	for one := range s.All() {
		out = append(out, one.Action())
	}
	slices.Sort(out)
	return out
}

func badDetails(description string) error {
	return &fault{http.StatusBadRequest, "invalid_authorization_details", description, ErrInvalidRequest}
}

var (
	errDetails = badDetails("authorization_details must be a JSON array of one object, whose members are each there once and of their type")
	errMembers = badDetails("a " + detailType + " has type, locations, domain, actions and uses, and nothing else")
)

// parseDetails reads authorization_details (RFC 9396 §5): one object of our type, whose location is the issuer if it
// names one. What is unknown or not of its form is refused, not passed over: it may have been meant to narrow.
func parseDetails(text, issuer string) (d detail, err error) {
	dec := json.NewDecoder(strings.NewReader(text))
	for _, open := range []json.Delim{'[', '{'} {
		if token, err := dec.Token(); err != nil || token != open {
			return detail{}, errDetails
		}
	}
	seen := map[string]bool{}
	for dec.More() {
		key, err := dec.Token()
		name, ok := key.(string)
		var raw json.RawMessage
		if err != nil || !ok || dec.Decode(&raw) != nil || seen[name] {
			return detail{}, errDetails
		}
		seen[name] = true
		switch name {
		case "type":
			d.Type, ok = jsonString(raw)
		case "locations":
			d.Locations, ok = jsonStrings(raw)
		case "domain":
			var domain string
			if domain, ok = jsonString(raw); ok {
				d.Domain, err = scope.ParseDomain(domain)
				ok = err == nil && !d.Domain.IsZero()
			}
		case "actions":
			d.Actions, ok = jsonStrings(raw)
		case "uses":
			// A number alone: encoding/json would take null.
			ok = raw[0] >= '0' && raw[0] <= '9' && json.Unmarshal(raw, &d.Uses) == nil && d.Uses > 0
		default:
			return detail{}, errMembers
		}
		if !ok {
			return detail{}, errDetails
		}
	}
	for _, end := range []json.Delim{'}', ']'} {
		if token, err := dec.Token(); err != nil || token != end {
			return detail{}, errDetails
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return detail{}, errDetails
	}
	for i, action := range d.Actions {
		if scope.CheckAction(action) != nil || slices.Contains(d.Actions[:i], action) {
			return detail{}, errDetails
		}
	}
	slices.Sort(d.Actions)
	switch {
	case d.Type != detailType:
		return detail{}, badDetails("the only type of authorization details is " + detailType)
	case slices.ContainsFunc(d.Locations, func(l string) bool { return l != issuer }):
		return detail{}, badDetails("the only location is the issuer")
	}
	return d, nil
}

func jsonString(raw json.RawMessage) (s string, ok bool) {
	return s, raw[0] == '"' && json.Unmarshal(raw, &s) == nil && s != ""
}

// jsonStrings takes one string or more.
func jsonStrings(raw json.RawMessage) (out []string, ok bool) {
	var list []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &list) != nil || len(list) == 0 {
		return nil, false
	}
	for _, item := range list {
		s, ok := jsonString(item)
		if !ok {
			return nil, false
		}
		out = append(out, s)
	}
	return out, true
}
