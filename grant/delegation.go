package grant

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/behest-go/behest/scope"
)

// delegationJSON is a Delegation as it travels from the server to a resource server in another process.
type delegationJSON struct {
	Account   string       `json:"account"`
	App       string       `json:"app"`
	Domain    scope.Domain `json:"domain"`
	Scope     *scope.Scope `json:"scope,omitempty"`
	Granted   scope.Set    `json:"granted"`
	Grant     string       `json:"grant"`
	Trigger   string       `json:"trigger,omitempty"`
	Operation Operation    `json:"operation,omitempty"`
	Event     string       `json:"event,omitempty"`
	Iat       int64        `json:"iat"`
	Exp       int64        `json:"exp"`
	Uses      *int         `json:"uses,omitempty"`
	Left      *int         `json:"left,omitempty"`
	Actors    []string     `json:"actors,omitempty"`
	Key       string       `json:"key,omitempty"`
}

// MarshalJSON writes the delegation with its fields in lower case, granted as [Delegation.Granted], the times as iat and exp in
// whole seconds (RFC 7519 §2), and neither uses nor left when there is no count; actors, as [Delegation.Actors], when App is not the only one. It names the account: it is for
// resource servers, not for apps.
func (d Delegation) MarshalJSON() ([]byte, error) {
	j := delegationJSON{Account: d.Account, App: d.App, Domain: d.Domain, Granted: d.Granted(), Grant: d.Grant, Trigger: d.Trigger,
		Operation: d.Operation, Event: d.Event, Iat: d.IssuedAt.Unix(), Exp: d.NotAfter.Unix()}
	if !d.Scope.IsZero() {
		j.Scope = &d.Scope
	}
	if d.Uses != Unlimited {
		j.Uses, j.Left = &d.Uses, &d.Left
	}
	if d.more != nil {
		if j.Key = d.more.key; len(d.Actors()) > 1 {
			j.Actors = d.Actors()
		}
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes, and ignores members that it does not know. What makes no delegation is
// [ErrInvalid]: without account, app, grant or exp, for scopes that are not of one domain, or for another scope than
// granted. The use counts as spent.
func (d *Delegation) UnmarshalJSON(text []byte) error {
	var j delegationJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("%w: delegation: %w", ErrInvalid, err)
	}
	out := Delegation{Account: j.Account, App: j.App, Domain: j.Domain, Grant: j.Grant, Trigger: j.Trigger, Operation: j.Operation, Event: j.Event,
		IssuedAt: time.Unix(j.Iat, 0).UTC(), NotAfter: time.Unix(j.Exp, 0).UTC(), Uses: Unlimited, Left: Unlimited}
	var actions []string
	for s := range j.Granted.All() {
		domain := s.Domain().String()
		if out.granted != "" && out.granted != domain {
			return invalid("delegation: granted in more than one domain")
		}
		out.granted, actions = domain, append(actions, s.Action())
	}
	out.actions = strings.Join(actions, " ")
	switch {
	case j.Account == "" || j.App == "" || j.Grant == "" || j.Exp <= 0 || len(actions) == 0:
		return invalid("delegation: account, app, grant, exp and granted are required")
	case (j.Uses == nil) != (j.Left == nil):
		return invalid("delegation: uses and left are there together, or neither is")
	case !covers(out.granted, j.Domain.String()):
		return invalid("delegation: granted in another domain")
	}
	if j.Uses != nil {
		if out.Uses, out.Left = *j.Uses, *j.Left; out.Uses < 1 || out.Left < 0 {
			return invalid("delegation: uses and left are no counts")
		}
	}
	if j.Scope != nil {
		if out.Scope = *j.Scope; out.Scope.Domain() != j.Domain || j.Granted.Allows(out.Scope) != nil {
			return invalid("delegation: its scope is not granted")
		}
	}
	if j.Key != "" || len(j.Actors) > 0 {
		out.more = &more{key: j.Key}
		for i, app := range j.Actors {
			switch {
			case app == "" || i == 0 && app != j.App:
				return invalid("delegation: the actors begin with the app")
			case i > 0:
				out.more.links = append(out.more.links, link{app: app})
			}
		}
	}
	*d = out
	return nil
}
