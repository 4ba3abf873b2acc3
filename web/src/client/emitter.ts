/** Events by name, with the type of what each carries. */
export class Emitter<Events> {
  readonly #handlers: { [Name in keyof Events]?: Array<(detail: Events[Name]) => void> } = {};

  on<Name extends keyof Events>(name: Name, handler: (detail: Events[Name]) => void): void {
    (this.#handlers[name] ??= []).push(handler);
  }

  protected emit<Name extends keyof Events>(name: Name, detail: Events[Name]): void {
    for (const handler of this.#handlers[name] ?? []) handler(detail);
  }
}
