// Command gitops tells how GitOps tools see objects: Flux (and kpt, and `flux` itself) by kstatus, Argo CD by a script
// in Lua. It reads JSON objects from standard input and writes one line of JSON for each.
//
// Usage: gitops health.lua < objects
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

// What Argo CD takes for a health; anything else becomes Unknown.
var healths = []string{"Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown"}

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type line struct {
	Kstatus string `json:"kstatus"`
	Argo    health `json:"argo"`
}

func main() {
	if err := run(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string, in io.Reader, out io.Writer) error {
	script, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for decoder := json.NewDecoder(in); ; {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		// Whole numbers as int64, as clients of Kubernetes have them.
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw); err != nil {
			return err
		}
		result, err := status.Compute(object)
		if err != nil {
			return err
		}
		argo, err := argoHealth(object, string(script))
		if err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(line{string(result.Status), argo}); err != nil {
			return err
		}
	}
}

// argoHealth runs the script in the same interpreter as Argo CD 3, with the libraries that it opens for scripts of its
// administrators, within the same second.
func argoHealth(object *unstructured.Unstructured, script string) (health, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage,
		lua.BaseLibName: lua.OpenBase,
		lua.TabLibName:  lua.OpenTable,
	} {
		call := lua.P{Fn: state.NewFunction(open), Protect: true}
		if err := state.CallByParam(call, lua.LString(name)); err != nil {
			return health{}, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", value(state, object.Object))
	if err := state.DoString(script); err != nil {
		return health{}, err
	}
	encoded, err := luajson.Encode(state.Get(-1))
	if err != nil {
		return health{}, err
	}
	var found health
	if err := json.Unmarshal(encoded, &found); err != nil {
		return health{}, err
	}
	if !slices.Contains(healths, found.Status) {
		return health{"Unknown", "Lua returned an invalid health status"}, nil
	}
	return found, nil
}

// value gives Lua a decoded JSON value; int64 is nothing that luajson's own decoder knows.
func value(state *lua.LState, decoded any) lua.LValue {
	switch v := decoded.(type) {
	case bool:
		return lua.LBool(v)
	case float64:
		return lua.LNumber(v)
	case int64:
		return lua.LNumber(v)
	case string:
		return lua.LString(v)
	case []any:
		table := state.CreateTable(len(v), 0)
		for _, item := range v {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.CreateTable(0, len(v))
		for key, item := range v {
			table.RawSetH(lua.LString(key), value(state, item))
		}
		return table
	default:
		return lua.LNil
	}
}
