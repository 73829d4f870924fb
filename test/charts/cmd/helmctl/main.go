// Command helmctl installs, upgrades, uninstalls and renders charts with Helm's own code, for programs of other modules.
//
//	helmctl install   --kubeconfig FILE --namespace NAME --chart DIR [--values FILE]... RELEASE
//	helmctl upgrade   --kubeconfig FILE --namespace NAME --chart DIR [--values FILE]... RELEASE
//	helmctl uninstall --kubeconfig FILE --namespace NAME RELEASE
//	helmctl template  --namespace NAME --chart DIR [--kube-version VERSION] [--values FILE]... RELEASE
//
// Values are YAML; "-" is standard input; later files win, object by object. Uninstall waits for hooks.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"syscall"

	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/test/charts/helm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "helmctl:", err) // nobody is left to tell when this fails
		os.Exit(1)                                      //nolint:gocritic // stop only frees memory
	}
}

// files is a flag that may be given again and again.
type files []string

func (f *files) String() string { return fmt.Sprint(*f) }

func (f *files) Set(s string) error {
	*f = append(*f, s)
	return nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("say install, upgrade, uninstall or template")
	}
	var kubeconfig, namespace, chart, version string
	var values files
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of an administrator")
	f.StringVar(&namespace, "namespace", "", "namespace of the release")
	f.StringVar(&chart, "chart", "", "folder of the chart")
	f.StringVar(&version, "kube-version", "v1.36.3", "Kubernetes version to render for")
	f.Var(&values, "values", "file of values")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return fmt.Errorf("%s needs the name of one release", args[0])
	}
	merged, err := load(values)
	if err != nil {
		return err
	}
	switch name := f.Arg(0); args[0] {
	case "install":
		return helm.Install(ctx, kubeconfig, chart, name, namespace, merged)
	case "upgrade":
		return helm.Upgrade(ctx, kubeconfig, chart, name, namespace, merged)
	case "uninstall":
		return helm.Uninstall(ctx, kubeconfig, name, namespace)
	case "template":
		r, err := helm.Render(ctx, chart, name, namespace, version, merged)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(out, r.Manifest)
		for _, h := range r.Hooks {
			_, each := fmt.Fprintf(out, "---\n%s\n", h)
			err = errors.Join(err, each)
		}
		return err
	default:
		return fmt.Errorf("%q is neither install, upgrade, uninstall nor template", args[0])
	}
}

func load(paths []string) (map[string]any, error) {
	out := map[string]any{}
	for _, path := range paths {
		content, err := read(path)
		if err != nil {
			return nil, err
		}
		more := map[string]any{}
		if err := yaml.Unmarshal(content, &more); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		merge(out, more)
	}
	return out, nil
}

func read(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(path)
}

func merge(into, from map[string]any) {
	for k, v := range from {
		mine, isMap := into[k].(map[string]any)
		theirs, wasMap := v.(map[string]any)
		if isMap && wasMap {
			copied := maps.Clone(mine)
			merge(copied, theirs)
			into[k] = copied
			continue
		}
		into[k] = v
	}
}
