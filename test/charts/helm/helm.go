// Package helm installs, upgrades, uninstalls, renders and lints charts with Helm's own code, for tests. It is a module apart
// from the product's, because Helm's dependencies move the versions that the product pins; programs of the product's module use
// the command helmctl.
package helm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/kube"
	release "helm.sh/helm/v4/pkg/release/v1"
)

// Timeout bounds each action and each of its hooks, as `helm --timeout` does by default.
const Timeout = 5 * time.Minute

// Install installs a chart as a release into a namespace that exists, without waiting for its pods.
func Install(ctx context.Context, kubeconfig, chartDir, releaseName, namespace string, values map[string]any) error {
	cfg, c, err := open(kubeconfig, namespace, chartDir)
	if err != nil {
		return err
	}
	do := action.NewInstall(cfg)
	do.ReleaseName, do.Namespace, do.Timeout, do.WaitStrategy = releaseName, namespace, Timeout, kube.HookOnlyStrategy
	if _, err := do.RunWithContext(ctx, c, values); err != nil {
		return fmt.Errorf("helm: install %s: %w", releaseName, err)
	}
	return nil
}

// Upgrade brings a release to what the chart and the values say now.
func Upgrade(ctx context.Context, kubeconfig, chartDir, releaseName, namespace string, values map[string]any) error {
	cfg, c, err := open(kubeconfig, namespace, chartDir)
	if err != nil {
		return err
	}
	do := action.NewUpgrade(cfg)
	do.Namespace, do.Timeout, do.WaitStrategy, do.ServerSideApply = namespace, Timeout, kube.HookOnlyStrategy, "auto"
	if _, err := do.RunWithContext(ctx, releaseName, c, values); err != nil {
		return fmt.Errorf("helm: upgrade %s: %w", releaseName, err)
	}
	return nil
}

// Uninstall runs the release's hooks, waits for them, and deletes the release. When a hook fails, nothing else is deleted.
func Uninstall(_ context.Context, kubeconfig, releaseName, namespace string) error {
	cfg, _, err := open(kubeconfig, namespace, "")
	if err != nil {
		return err
	}
	do := action.NewUninstall(cfg)
	do.Timeout, do.WaitStrategy, do.DeletionPropagation = Timeout, kube.HookOnlyStrategy, "background"
	if _, err := do.Run(releaseName); err != nil {
		return fmt.Errorf("helm: uninstall %s: %w", releaseName, err)
	}
	return nil
}

// Rollback brings a release to its last revision again, also after an uninstallation that failed.
func Rollback(kubeconfig, releaseName, namespace string) error {
	cfg, _, err := open(kubeconfig, namespace, "")
	if err != nil {
		return err
	}
	last, err := cfg.Releases.Last(releaseName)
	if err != nil {
		return fmt.Errorf("helm: rollback %s: %w", releaseName, err)
	}
	r, ok := last.(*release.Release)
	if !ok {
		return fmt.Errorf("helm: rollback %s: a release of type %T", releaseName, last)
	}
	do := action.NewRollback(cfg)
	do.Version, do.Timeout, do.WaitStrategy, do.ServerSideApply = r.Version, Timeout, kube.HookOnlyStrategy, "auto"
	if err := do.Run(releaseName); err != nil {
		return fmt.Errorf("helm: rollback %s: %w", releaseName, err)
	}
	return nil
}

// Rendered is what a chart makes of values.
type Rendered struct {
	// Manifest are the objects, Hooks those of hooks, each as YAML documents; Notes is what people read.
	Manifest, Notes string
	Hooks           []string
}

// Render makes a chart's objects without a cluster, for a Kubernetes of the version given ("v1.36.3").
func Render(ctx context.Context, chartDir, releaseName, namespace, kubeVersion string, values map[string]any) (Rendered, error) {
	version, err := common.ParseKubeVersion(kubeVersion)
	if err != nil {
		return Rendered{}, fmt.Errorf("helm: %w", err)
	}
	c, err := loader.Load(chartDir)
	if err != nil {
		return Rendered{}, fmt.Errorf("helm: %s: %w", chartDir, err)
	}
	do := action.NewInstall(action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler)))
	do.DryRunStrategy, do.ReleaseName, do.Namespace, do.KubeVersion = action.DryRunClient, releaseName, namespace, version
	made, err := do.RunWithContext(ctx, c, values)
	if err != nil {
		return Rendered{}, fmt.Errorf("helm: render %s: %w", chartDir, err)
	}
	r, ok := made.(*release.Release)
	if !ok {
		return Rendered{}, fmt.Errorf("helm: render %s: a release of type %T", chartDir, made)
	}
	out := Rendered{Manifest: r.Manifest, Notes: r.Info.Notes}
	for _, h := range r.Hooks {
		out.Hooks = append(out.Hooks, h.Manifest)
	}
	return out, nil
}

// RenderFor renders a chart for a Kubernetes that serves these APIs ("group/version/Kind") and no others, and tells how it went.
func RenderFor(chartDir, releaseName, namespace string, served []string, values map[string]any) error {
	c, err := loader.Load(chartDir)
	if err != nil {
		return fmt.Errorf("helm: %s: %w", chartDir, err)
	}
	capabilities := common.DefaultCapabilities.Copy()
	capabilities.APIVersions = served
	made, err := util.ToRenderValues(c, values, common.ReleaseOptions{Name: releaseName, Namespace: namespace, IsInstall: true}, capabilities)
	if err != nil {
		return fmt.Errorf("helm: render %s: %w", chartDir, err)
	}
	if _, err := engine.Render(c, made); err != nil {
		return fmt.Errorf("helm: render %s: %w", chartDir, err)
	}
	return nil
}

// Lint returns everything that Helm's linter has against a chart, but what it only mentions.
func Lint(chartDir string, values map[string]any) error {
	do := action.NewLint()
	do.Strict = true
	return errors.Join(do.Run([]string{chartDir}, values).Errors...)
}

func open(kubeconfig, namespace, chartDir string) (*action.Configuration, *chart.Chart, error) {
	settings := cli.New()
	settings.KubeConfig, settings.KubeContext = kubeconfig, ""
	settings.SetNamespace(namespace)
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err := cfg.Init(settings.RESTClientGetter(), namespace, "secret"); err != nil {
		return nil, nil, fmt.Errorf("helm: %w", err)
	}
	if chartDir == "" {
		return cfg, nil, nil
	}
	c, err := loader.Load(chartDir)
	if err != nil {
		return nil, nil, fmt.Errorf("helm: %s: %w", chartDir, err)
	}
	return cfg, c, nil
}
