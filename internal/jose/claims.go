package jose

import (
	"math"
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4/json"
)

// Claims are those of a JWT (RFC 7519 §4.1). What is not there is zero; what is there has its type and is not empty.
type Claims struct {
	Issuer, Subject, ID          string
	Audience                     []string // one, if it was a string
	Expires, NotBefore, IssuedAt time.Time
	all                          map[string]json.RawMessage
}

// ParseClaims reads a payload. A member that is there twice, at any depth, or a registered claim of another type is an
// error. Times are 1970 to 9999, with fractions of a second.
func ParseClaims(payload []byte) (*Claims, error) {
	all, err := object(payload)
	if err != nil {
		return nil, err
	}
	c := &Claims{all: all}
	for name, into := range map[string]*string{"iss": &c.Issuer, "sub": &c.Subject, "jti": &c.ID} {
		if raw, there := all[name]; there {
			if *into, there = text(raw); !there {
				return nil, invalid("%s is not text", name)
			}
		}
	}
	for name, into := range map[string]*time.Time{"exp": &c.Expires, "nbf": &c.NotBefore, "iat": &c.IssuedAt} {
		if raw, there := all[name]; there {
			if *into, there = numericDate(raw); !there {
				return nil, invalid("%s is not a time", name)
			}
		}
	}
	if raw, there := all["aud"]; there {
		if c.Audience, there = audience(raw); !there {
			return nil, invalid("aud is not text, nor a list of texts")
		}
	}
	return c, nil
}

// Get decodes another claim into a pointer, and says whether it is there. Names are compared as they stand.
func (c *Claims) Get(name string, into any) (bool, error) {
	raw, there := c.all[name]
	if !there {
		return false, nil
	}
	if err := json.Unmarshal(raw, into); err != nil || string(raw) == "null" {
		return true, invalid("%s has another type", name)
	}
	return true, nil
}

// Live says whether exp, which is required, is to come, and nbf and iat, where they are, are not: nil is yes. Clocks may
// differ by the leeway, for which exp is not stretched.
func (c *Claims) Live(now time.Time, leeway time.Duration) error {
	switch latest := now.Add(leeway); {
	case c.Expires.IsZero():
		return invalid("no exp")
	case !now.Before(c.Expires):
		return invalid("expired")
	case c.NotBefore.After(latest):
		return invalid("nbf is to come")
	case c.IssuedAt.After(latest):
		return invalid("iat is to come")
	}
	return nil
}

const lastSecond = 253402300799 // of the year 9999

// numericDate reads a number of seconds (RFC 7519 §2).
func numericDate(raw json.RawMessage) (time.Time, bool) {
	if len(raw) == 0 || raw[0] < '0' || raw[0] > '9' { // neither text, nor negative, nor null
		return time.Time{}, false
	}
	seconds, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || seconds > lastSecond {
		return time.Time{}, false
	}
	whole, part := math.Modf(seconds)
	return time.Unix(int64(whole), int64(part*1e9)).UTC(), true
}

func audience(raw json.RawMessage) ([]string, bool) {
	if one, ok := text(raw); ok {
		return []string{one}, true
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 {
		return nil, false
	}
	all := make([]string, len(list))
	for i, raw := range list {
		var ok bool
		if all[i], ok = text(raw); !ok {
			return nil, false
		}
	}
	return all, true
}
